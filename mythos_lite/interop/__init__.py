"""Ways out of the notebook: other libraries' files, numbers of fewer bits, fine-tuning. The core imports nothing here."""
