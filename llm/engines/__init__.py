"""Engines: where K responses per prompt come from. `engine` has the protocol, `config` the settings of each."""
