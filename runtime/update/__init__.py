"""Updates: what a new bundle has that an old one lacks, in one file; applied in one step, and taken back in one."""
