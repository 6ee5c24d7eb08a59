"""pcam: the trainer, the study and the reference result for PatchCamelyon."""
