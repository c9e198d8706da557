"""The simulated SO-101 arm (so101-nexus on MuJoCo): tasks, scripted expert, demonstrations, rollouts."""
