"""Reports for people who weren't there: a page, a short receipt and a model card, made of the documents of commands.

The documents are the only source: `story` reads them, and every writer shows what it found.
"""

from onnxprune.report.page.card import to_card
from onnxprune.report.page.html import to_html
from onnxprune.report.page.parts import Story
from onnxprune.report.page.receipt import to_receipt
from onnxprune.report.page.story import story

__all__ = ["Story", "story", "to_card", "to_html", "to_receipt"]
