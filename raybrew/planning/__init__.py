"""What `raybrew plan` tells: the teacher's pass, the student, the trainings, and all of it in words."""
