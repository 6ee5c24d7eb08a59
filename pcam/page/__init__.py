"""The page to try: patches or larger images in, scores and pictures out, in a browser on this machine."""
