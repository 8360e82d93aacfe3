"""Ways out of the notebook: files of other libraries, fewer bits, fine-tuning. The core imports nothing from here."""
