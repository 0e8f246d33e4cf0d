"""Tests over real AF_VSOCK, in kernels that the tests boot."""
