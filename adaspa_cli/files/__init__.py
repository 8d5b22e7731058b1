"""Files and folders, videos included, that appear only when complete."""
