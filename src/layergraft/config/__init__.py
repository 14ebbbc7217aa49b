"""The typed config of a run: its dataclasses, the registry of kinds, composition by Hydra, what plug-ins add, error messages."""
