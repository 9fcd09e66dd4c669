"""Any results side by side: who is faster, who predicts better, and who at the same speed."""
