"""What can be done with pools and tables: one file, or folder, per capability."""
