"""`vsockproxy top`: a full-screen view of a running daemon, refreshed every second."""
