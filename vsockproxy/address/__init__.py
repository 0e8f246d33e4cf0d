"""Addresses: values, the grammar that reads and prints them, and their sockaddr forms."""
