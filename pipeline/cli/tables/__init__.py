"""The tables that the commands print, one file for each kind."""
