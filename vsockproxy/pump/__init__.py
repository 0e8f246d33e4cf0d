"""Move bytes between two connected sockets, in C or in trio."""
