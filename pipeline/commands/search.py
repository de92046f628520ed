"""`pipeline search`: type a sentence, or give a picture, and see which images fit best."""
