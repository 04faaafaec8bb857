"""The model, bottom up: each file uses only those before it.

state, checks, positions, attention, gates, sliding_window, cell, recurrent, layer_stack, feedback,
stack, language_model, protocol, sampling, block_decoding, token_decoding, generation; and
parameters, which names what a module learns.
"""
