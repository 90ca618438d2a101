"""Run a network on smaller images: a Resize behind the image input, and every constant that depends on its size.

Inputs and outputs of the file stay as they are. Costs fall about with the number of pixels; weights stay whole. (X. Xie
et al., "Accelerate CNNs from three dimensions", ICML 2021, on resolution as an axis of pruning.)
"""
