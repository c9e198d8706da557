"""What a session needs of this machine: disk, memory, time and traffic, computed from settings and metadata."""
