"""The config of a run: its keys, its rules, and how it is read from YAML."""
