"""The log: where lines go, how they look, and the recent events kept in memory."""
