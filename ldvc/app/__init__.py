"""What people use: the command `ldvc` and the page."""
