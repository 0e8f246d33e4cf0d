"""`vsockproxy top`: a running daemon on a whole terminal, looked at every second."""
