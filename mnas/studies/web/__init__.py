"""Reports that open in a browser: one HTML file each, with all that it needs inside."""
