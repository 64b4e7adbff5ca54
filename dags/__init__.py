"""The DAGs that sluice ships, as YAML: `sluice run quickstart ROOT`."""
