"""The door to Flower: who carries plans out and updates back."""
