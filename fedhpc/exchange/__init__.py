"""The door: all that crosses the wall goes through here."""
