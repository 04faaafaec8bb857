"""Tables, curves and pictures from work directories, beside the figures of the paper."""
