"""What is known of today, in memory: what the page and its API show without asking the database.

Each payload counts with its own time and its own numbers (`payloads.reading`).
What lives here may not know: HTTP, SQL.
"""

from data_pipeline.board.board import Board
from data_pipeline.board.days import PastDays
from data_pipeline.board.restore import BoardRestore
from data_pipeline.board.series import COLUMNS, Series

__all__ = ["COLUMNS", "Board", "BoardRestore", "PastDays", "Series"]
