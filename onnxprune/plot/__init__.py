"""Plots of results, written to image files by matplotlib."""

from onnxprune.plot.layers import plot_layers
from onnxprune.plot.sensitivity import plot_sensitivity
from onnxprune.plot.widths import TradeOff, plot_widths

__all__ = ["TradeOff", "plot_layers", "plot_sensitivity", "plot_widths"]
