"""vsockproxy: byte streams between TCP and vsock."""

__version__ = "0.1.0"
