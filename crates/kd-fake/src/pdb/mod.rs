//! A writer of PDB 7.0 files.
