"""Files that may be damaged, cut or hostile: written with digests, read by schemas."""
