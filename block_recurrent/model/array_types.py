"""Types of arrays, with their shapes in the letters that every file uses.

    B batch rows            N segment length      W window and block length   K = N / W blocks
    S recurrent states      E model size          H heads                     D head size
    M MLP size              V vocabulary          L layers                    R recurrent layers
    Q queries, T keys (attention)                 G layers of one part of the stack

They are annotations for readers and editors. Nothing compares them with the arrays at run time;
`checks` does that where users call the library.
"""

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Int32, PRNGKeyArray, UInt32

Key = PRNGKeyArray
AnyArray = Array | np.ndarray

Tokens = Int[AnyArray, "B N"]
Token = Int32[Array, "B"]
TokenActivations = Float[Array, "B 1 E"]
Index = Int32[Array, ""]
Starts = Bool[AnyArray, "B"]
Lengths = Int[AnyArray, "B"]  # real tokens of each row; padding follows them
Activations = Float[Array, "B N E"]
Logits = Float32[Array, "B N V"]
TokenLogits = Float32[Array, "B V"]
States = Float32[Array, "B S E"]

Vectors = Float[Array, "... T H D"]  # queries, keys or values
Heads = Float[Array, "B N H D"]
Blocks = Float[Array, "B K W H D"]
DistanceBias = Float32[Array, "H W"]  # at the distances W to 1
TileBias = Float32[Array, "H Q T"]
Seeds = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
