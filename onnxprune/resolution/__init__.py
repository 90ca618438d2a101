"""Run a network on smaller images or fewer frames: a Resize behind the input, and what depends on its size anew.

Inputs and outputs of the file stay as they are. Costs fall about with the number of pixels; weights stay whole. (X. Xie
et al., "Accelerate CNNs from three dimensions", ICML 2021, on resolution as an axis of pruning.)
"""
