"""The process and its host: devices, memory, cores, logs and failures."""
