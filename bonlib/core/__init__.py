"""The method's parts: hash, table, compiled draws, and what all miners share."""
