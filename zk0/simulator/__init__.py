"""The door to so101-nexus: a simulated SO-101 arm, its scripted expert, demonstrations and rollouts."""
