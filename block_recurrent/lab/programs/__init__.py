"""The lab's programs, called by `block-recurrent NAME` or `python experiments/NAME.py`."""
