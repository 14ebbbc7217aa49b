"""All that any run takes, imported: torch, Lightning and what they bring along. For processes that are told what to import by name."""

from layergraft.runs.quick_imports import imported

imported("layergraft.hosts.resnet_modules")
imported("layergraft.runs.train")
