"""Run the later blocks of a vision transformer on fewer tokens: neighbors on the grid of patches become their mean.

Inputs and outputs of the file stay as they are. Tokens for the class and registers stay by themselves. A mean counts as
often as the tokens that it is of: attention adds the logarithm of their number to its logits (D. Bolya et al., "Token
merging: your ViT but faster", ICLR 2023, on proportional attention). Which tokens merge is fixed, and doesn't depend
on the image. What needs every token, such as an output with a value for each, gets the mean in place of each.
"""
