"""One TOML an experiment."""
