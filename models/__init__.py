"""What is edited: bases and deltas, and what is sampled from them.

Importing transformers and DeepSpeed says two things that look like faults and are none; they are not shown.
"""

import logging

HARMLESS = {
    # Its preprocessing by PIL is the one that efface is tested with; installing torchvision is no remedy for anything.
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back",
    # On a machine without a GPU.
    "DeepSpeed": "Setting accelerator to CPU",
}
"""By logger, a part of what its message says."""


class Without(logging.Filter):
    """Lets through what does not say `part`."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self.part not in record.getMessage()


for _logger, _part in HARMLESS.items():
    logging.getLogger(_logger).addFilter(Without(_part))
