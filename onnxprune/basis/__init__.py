"""Change the basis of channels that only linear operators touch, so that those of least variance can be removed.

Where convolutions and matrix products write into a sum that others read, and no activation or scale acts on single
channels, the channels can be replaced by combinations of them: producers' weights are multiplied by an orthogonal
matrix, readers' by its inverse. The network computes the same. (Linear bottlenecks; S. Ashkboos et al., "SliceGPT",
ICLR 2024, for the residual streams of language models.)
"""
