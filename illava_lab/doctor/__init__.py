"""Does the lab work here, with this model? What `illava-lab doctor` tries, and how it says what it found."""
