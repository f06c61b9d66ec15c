"""The code that is copied, file by file, into every compressed checkpoint.

It imports torch and transformers only, so that a checkpoint loads with nothing of this project
installed: `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`.
"""
