"""The model, bottom up: each file uses only those before it.

array_types, checks, layers, rematerialization, positions, gates, state, attention,
transformer_layer, cell, stack, feedback, language_model, protocol, sampling, decoding; and
parameters, which names what a module learns.
"""
