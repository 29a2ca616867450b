"""What makes rules possible: finding sites, standing in for their backward pass, and saying what was reached."""
