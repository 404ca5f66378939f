"""One LightningModule a file: what is trained, and how a step of it goes."""
