"""Tests over real AF_VSOCK, in kernels that they boot themselves."""
